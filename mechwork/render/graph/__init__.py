"""The interactive graph: what is drawn, where it stands, and the page it is drawn on."""
