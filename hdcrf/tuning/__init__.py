"""Parameters of the CRF that suit labelled examples: the examples, and two searches."""
