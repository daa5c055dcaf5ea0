"""How Sphinx builds the documentation."""

project = "tracin"
author = "the tracin developers"
copyright = "2026, the tracin developers"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
nb_execution_mode = "off"  # the code blocks are run by the tests
myst_enable_extensions = ["dollarmath", "colon_fence"]
html_theme = "furo"
html_title = "tracin"
html_theme_options = {"top_of_page_buttons": []}  # they stand outside of every landmark
html_static_path = ["_static"]
html_js_files = ["accessible.js"]
exclude_patterns = ["_build"]
autodoc_typehints = "description"
autodoc_member_order = "bysource"
napoleon_google_docstring = True
napoleon_use_ivar = True
suppress_warnings = ["myst.xref_missing"]
