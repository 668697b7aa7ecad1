"""What a run writes about itself: manifest, environment, summary and model card."""
