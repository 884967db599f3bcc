"""Models by address: fetched into a cache, checked, and used as a folder; or pushed to where others fetch them."""
