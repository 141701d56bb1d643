"""Published architectures at their true size, with random weights and nothing from the Hub: to be timed."""
