"""One test module per operator; hmm_cases and checks hold what they share."""
