"""Running a chat template, which is code from whoever made the model, within bounds on time, memory and output."""
