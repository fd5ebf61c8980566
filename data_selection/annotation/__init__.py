"""What people and their tools need to label a choice: originals, thumbnails, task files, and a page for the browser.

Chosen images become files that annotation programs read; nothing here chooses, embeds or trains.
"""
