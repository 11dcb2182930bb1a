"""What travels between limpet's own processes: boot files, lines, channels, shared memory."""
