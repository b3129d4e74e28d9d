"""How run folders become a page: what is read, figures, and pages of one run and of several."""
