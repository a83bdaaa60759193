"""The steps: what the updater does to the world, each behind one door, none knowing the others.

`acquire` brings releases (with `metadata` for trust and `channel` for what a channel says), `slots` is the only
writer of slots and links, `canary` runs candidates in children, `journal` keeps state and history.
"""
