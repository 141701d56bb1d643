"""Where the observations come from that plans are fitted to and judged on."""
