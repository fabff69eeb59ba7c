"""How `operations` are asked for and shown.

===========  =====================================================================
`documents`  what is asked and answered, as JSON has it
`survey`     the answers, joined from the store's records; pure
`ask`        through a gateway; `ask_store` from the store itself
`tables`     the answers as people read them
===========  =====================================================================
"""
