"""Extensions under the names that Pyro gives them. Most of Pyro's own are out of scope and say so."""
