"""What each layer and the whole step cost on this device."""
