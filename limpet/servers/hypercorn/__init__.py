"""hypercorn's adapter, on asyncio and on trio."""
