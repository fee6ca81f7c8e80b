"""Images: loading from files, URLs, arrays and PDFs, their token grid, and the image processors."""
