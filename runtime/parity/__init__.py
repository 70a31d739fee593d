"""Does this machine still give what the export gave?"""
