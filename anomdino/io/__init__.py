"""Reading and writing of the files that stages exchange."""
