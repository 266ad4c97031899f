"""Reports: any result as a page of sections, written as text, Markdown, JSON, HTML or SVG."""
