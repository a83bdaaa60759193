"""The publisher: signs releases and lays them out as files that any static web server can serve.

This package knows TUF's metadata and private keys. It must never run on a device.
"""
