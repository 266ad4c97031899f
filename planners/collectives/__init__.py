"""What devices send each other: payloads, bytes per tier of links."""
