"""Other people's trainers: each module here needs its package, and nothing else imports it."""
