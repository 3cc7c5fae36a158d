"""Without the internet: the edge on one address of the local network, and how attendees trust its certificate."""
