"""Looking at scenes: layers of colours, pictures, the browser viewer."""
