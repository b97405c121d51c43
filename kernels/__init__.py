"""One operation a file: the torch reference, its fast forms, and one public function that picks by device."""
