"""An episode as a page, a picture and a Rerun recording."""
