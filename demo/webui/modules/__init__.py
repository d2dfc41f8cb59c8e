"""The host's side that extensions see: the names of A1111's and SD.Next's `modules` package, as far as they are used.

The folder above is put on `sys.path`, so that extensions import `modules.scripts` and its neighbours as in a WebUI.
"""

#: By this an extension knows that no real WebUI has loaded it.
EMBEDDED_HOST = True
