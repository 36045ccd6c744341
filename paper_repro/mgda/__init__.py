"""MGDA and MGDA-UB (Sener & Koltun 2018; Su 2022), one question a file."""
