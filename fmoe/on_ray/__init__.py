"""The only folder that imports ray."""
