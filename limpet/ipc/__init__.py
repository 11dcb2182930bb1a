"""What limpet's own processes exchange: boot files, messages on lines, channels, shared memory."""
