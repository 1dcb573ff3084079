"""Running the cascade over a user's photos and videos and writing what a user wants to see."""
