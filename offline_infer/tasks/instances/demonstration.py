from pathlib import Path
BUNDLE = Path(__file__).parent / "demo" / "bundle"
