"""What rows hold beside texts and images: referring to it, expanding its placeholders, and opening it for a batch."""
