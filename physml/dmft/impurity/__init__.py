"""The Mott transition: a quantum impurity and its bath."""
