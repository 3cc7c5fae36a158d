"""Who may come in and what they may do: tokens' ledger, invites, OAuth, the pages for people, and /admin."""
