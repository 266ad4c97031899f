"""Communication between devices: payloads, bytes per tier of links."""
