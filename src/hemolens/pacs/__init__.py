"""The PACS service: it receives head CTs, analyzes each complete series once and sends the results back.

::

    peer --C-STORE--> listener --> spool + queue --> completion --> worker --> queue --> sender --> destination

Each part is a process of its own that may die at any moment: what it does is one transaction or may be done again.
Research use only. Not a medical device.
"""
