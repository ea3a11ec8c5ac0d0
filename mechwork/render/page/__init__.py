"""What every page is made of: text, tables, figures, cards, and the page itself."""
