"""The mains of limpet's processes."""
