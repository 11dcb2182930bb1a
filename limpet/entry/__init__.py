"""The main functions of limpet's processes."""
