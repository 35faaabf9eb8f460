"""The cloud: asks for updates, averages them, signs bases and releases, and rolls them out."""
