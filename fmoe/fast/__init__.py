"""The same numbers, sooner: passes over our own networks for crafting and evaluation."""
