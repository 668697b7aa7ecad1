"""What can be done after training: merge, quantize, chat, preview, push and replay."""
