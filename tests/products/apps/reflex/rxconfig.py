"""What Reflex wants to know of the application next to this file."""

import reflex as rx

config = rx.Config(app_name="app", telemetry_enabled=False, disable_plugins=[rx.plugins.SitemapPlugin])
