"""What people look at: the style of pages, and what notebooks show."""
