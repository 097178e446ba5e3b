"""What a study's models learned: probes, tracking, permanence, fine-tuning, samples."""
