"""One self-contained page that shows at a glance where a method fails."""
