"""Parameters of the CRF that suit labelled examples: the examples, two searches, and what they found."""
