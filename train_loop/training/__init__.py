"""What happens on the devices, and between the steps."""
