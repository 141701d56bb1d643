"""What vision-language-action policies share: cameras, patches, prompt."""
