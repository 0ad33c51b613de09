"""Keys and values of prompts that outlive the process: blocks in a folder, each under its name and a checksum."""
