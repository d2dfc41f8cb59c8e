"""All that LibGuard knows of WebUIs. Only these files import a host's modules; guards see a `Host`."""
