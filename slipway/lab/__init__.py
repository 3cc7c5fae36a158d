"""Workshop mode: a lab of seats, and the board that shows them."""
